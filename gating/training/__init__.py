"""How an adapter is trained (rows, fit), measured and described (measure, card)."""
