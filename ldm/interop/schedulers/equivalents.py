"""Tables that reading and writing share: values of diffusers' scheduler settings, and our names for them."""

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
SIGMA_SPACINGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
VARIANCES = {"fixed_small": "posterior", "fixed_large": "beta"}
# With any spacing these step by T // steps, so only "trailing" and "leading" end where the next step begins.
STEPS_OF_THE_TABLE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
EDM_SIGMAS = ("sigma_min", "sigma_max", "sigma_data")
