"""A local web page on which models can be played with: `python -m scoregen.demo`."""
