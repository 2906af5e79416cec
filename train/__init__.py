"""Train: run config, loop, engines, checkpoints, evaluation, plan, report, command line."""
