"""Training: functions a stage's own loop calls (loss, optimiser, LoRA, checkpoints). There is no Trainer to subclass."""
