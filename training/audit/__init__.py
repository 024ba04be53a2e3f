"""`dexml audit`: which answers an index can give, how little changes one, and what an attack on a query's input achieves."""
