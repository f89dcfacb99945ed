"""The frame around the coded tensors: preamble, directory, chunks, sections. Knows nothing of coders."""
