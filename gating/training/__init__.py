"""How an adapter is trained (adapter, rows, fit), measured (measure) and described (recipe, card)."""
