"""Networks of the method: encoder, decoder, cells, and the RNN that is exported. Torch only."""
