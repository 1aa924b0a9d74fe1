"""Measuring on the machine at hand: `kappaseg bench`.

data.py     how many images a second reading, decoding, augmenting and the whole loader give
data_flags.py  its flags     data_steps.py  the times of one image's steps
data_network.py  the training step that the images are for
"""
