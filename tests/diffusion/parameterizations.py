"""Every parameterization that tests of sampling grids and of coefficients go through, with its name."""

from ldm.diffusion import EDM, X0, Eps, Flow, Schedule, V

ALL = [
    Eps(),
    X0(),
    V(),
    V(Schedule("linear", zero_terminal_snr=True)),
    X0(Schedule("cosine")),
    Flow(),
    EDM(),
    EDM(sigma_data=0.5),
]
NAMES = ["eps", "x0", "v", "v-zero", "x0-cosine", "flow", "edm", "edm-half"]
