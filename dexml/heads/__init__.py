"""Free-label heads: a vector for each label that no text makes, fitted over rows that stand still, or fixed before training."""
