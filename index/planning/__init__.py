"""How many machines an index needs, before there are any: constants measured on one, a formula, and a queue simulated."""
