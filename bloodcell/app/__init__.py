"""The web page of a run: images in, classes out, in a browser and on this machine alone."""
