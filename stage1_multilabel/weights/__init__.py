"""Published classifiers: what their files say, and tables from their parameter names to ours. One module per format."""
