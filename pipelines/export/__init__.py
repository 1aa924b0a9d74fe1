"""`kappaseg export`: a trained network as one file that runs without this project.

networks.py   from u8 images to rankings and label maps, as modules that can be traced
formats.py    such a module → a .pt2 or .onnx file, and what that file computes
check.py      how far the file's outputs are from those of the network itself
run.py        a run directory → a folder with the file, its card and the class names
"""
