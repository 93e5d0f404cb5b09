"""The MNIST recipe, judged by a classifier of real MNIST: latents against pixels at equal time.

    python benchmarks/mnist.py ROOT [n=1000] [RUN ...]

ROOT holds MNIST as torchvision keeps it; the runs are mnist and ddpm by default. For each run of stage two, `n` samples
(on pixels they take ten times as long, and distances of different n can't be compared): the share of class-conditional
samples that are read as their class, and the Frechet distance between samples and the real test images
in the classifier's features (not FID, whose features are Inception's).
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import empirical_covariance
from torch import Tensor, nn
from torchvision.datasets import MNIST

import ldm


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU()),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def images_of(root: str, train: bool) -> tuple[Tensor, Tensor]:
    data = MNIST(root, train=train, download=False)
    return data.data[:, None].float() / 127.5 - 1, data.targets


def train_classifier(root: str) -> Classifier:
    torch.manual_seed(0)
    x, y = images_of(root, True)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(128):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def frechet(a: Tensor, b: Tensor) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features (N, D), in float64."""
    x, y = a.double().numpy(), b.double().numpy()
    ca, cb = empirical_covariance(x), empirical_covariance(y)
    root = np.sqrt(np.clip(np.linalg.eigvals(ca @ cb).real, 0, None)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root)


def main() -> None:
    root, *rest = sys.argv[1:]
    n = int(next((word[2:] for word in rest if word.startswith("n=")), 1000))
    runs = [word for word in rest if not word.startswith("n=")] or ["mnist", "ddpm"]
    model = train_classifier(root)
    x, y = images_of(root, False)
    real = torch.cat([model.body(batch) for batch in x.split(500)])
    accuracy = float((model.head(real).argmax(1) == y).float().mean())
    print(f"real test images: read rightly {accuracy:.3f}, between halves {frechet(real[::2], real[1::2]):.2f}")
    for run in runs:
        labels = torch.arange(n) % 10
        generator = ldm.load(f"runs/ldm/{run}")
        samples = generator(
            labels=labels, seed=0, output="pt", batch_size=100, sampler="dpmpp_2m", steps=20, spacing=None
        )
        features = torch.cat([model.body(batch) for batch in samples.split(500)])
        right = float((model.head(features).argmax(1) == labels).float().mean())
        print(f"{run}: read as their class {right:.3f}, Frechet distance {frechet(features, real):.2f}", flush=True)


if __name__ == "__main__":
    main()
