"""From noise to samples: the rules of a step, the loop, guidance."""
