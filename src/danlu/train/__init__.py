"""Training: functions that a stage's own loop calls (loss, optimiser, LoRA, checkpoints); no Trainer to subclass."""
