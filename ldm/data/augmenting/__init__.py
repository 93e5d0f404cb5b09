"""Variants of training images, made once before training: flips, random crops, and non-leaking augmentation."""
