"""`kappaseg bench`: what parts of the pipeline cost on this machine.

    network   time and memory of a segmentation network against the number of labels, with inputs of random numbers
    data      how many images a second reading, decoding, augmenting and the whole loader give

Every variant of a network is computed in a process of its own and these are asked in turns (A B C, A B C, …), so that
whatever else the machine does falls on all of them alike; so are loaders of different numbers of workers. What is
published is in `published_way`.
"""
