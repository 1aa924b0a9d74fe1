"""Weights that other programs made: their files (`files`), and tables from their parameter names to ours (`renaming`).

One module per network that several formats share: `vit`, `swin`, `resnets`, `label_decoder`. The formats themselves are
in stage1_multilabel/weights and stage2_segmentation/weights; `kappaseg import-weights` puts all of it together.
"""
