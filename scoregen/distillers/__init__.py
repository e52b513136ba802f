"""One-step distillation: what `conf/distiller` may name."""
