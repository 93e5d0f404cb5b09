"""Autoencoders of diffusers in and out, by their class there: AutoencoderKL, VQModel, AutoencoderTiny."""
