"""The published configurations: one table, which `kappaseg cost` counts and the recipes under configs/ are made of.

    sets.py        data sets: sizes, κ, colours, lengths of training, label loss
    numbers.py     what paper and release state: parameters, MACs, mIoU, mAP
    segmenter.py   recipes of stage two with the Segmenter    pixel_hosts.py   with DeepLabV3 and UPerNet
    mask_networks.py   with MaskFormer and Mask2Former
    encoder_only.py   recipes that nobody published, of stage two without a decoder
    query2label.py   recipes of stage one, and of ranking
    table.py       all recipes
    networks.py    a recipe's network without weights, counted    cost.py   the verb
    estimate.py    hours and memory from the counts    recipe_files.py   header and YAML of a recipe

Paper: He et al., "RankSeg", ECCV 2022. Release: its public code, files since deleted included.
"""
