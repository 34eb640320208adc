"""How good the bench itself is: fidelity, harness cost, explanations."""
