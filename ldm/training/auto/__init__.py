"""The choices behind `vae=auto`, `network=auto`, `batch_size=auto` and `optimizer.lr=auto`.

Everything is arithmetic on two numbers: the operations of a training step (`count`), and the operations per second that
a kind of machine reaches in training (`choose`). All processes of a run therefore choose the same sizes, and the same
command chooses the same sizes on another machine of that kind. `settle` writes the choice into the run's config, and
resuming keeps it. `advice` reports these choices for a data set before anything is trained, with times that `measure`
takes.
"""
