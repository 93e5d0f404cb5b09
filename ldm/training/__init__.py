"""Stage one and stage two: their tasks, losses and runs.

The loss of stage one, with its KL term, is put together in `vae_task`, that of stage two in `ldm_task`.
"""
