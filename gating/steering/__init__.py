"""What is done to activations and what is read off them: interventions, directions, their lowering, the traces that
run them."""
