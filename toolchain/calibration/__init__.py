"""What int8 needs to know before it can round: pictures to look at, ranges of activations, scales of weights."""
