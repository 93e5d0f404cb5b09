"""Everything around Lightning's Trainer: options, callbacks, loggers, costs and speed."""
