"""Runs by name. Each module holds one `config`, and in its docstring the command that starts it."""

from experiments.configs import debug, finetune, stage1, stage2, stage3

CONFIGS = {module.config.name: module.config for module in (stage1, stage2, stage3, debug, finetune)}
