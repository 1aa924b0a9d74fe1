"""What both stages stand on: rankings, scenes, backbones, the training loop, metrics, run directories."""
