"""`kappaseg bench`: what parts of the pipeline cost on this machine, with inputs of random numbers.

    network   time and memory of a segmentation network against the number of labels, in training and in use

Every variant is computed in a process of its own and these are asked in turns (A B C, A B C, …), so that whatever else
the machine does falls on all of them alike. What is published is in `published_way`.
"""
