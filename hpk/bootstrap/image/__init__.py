"""The control-plane image: get the programs (official releases, or Go modules pinned in the tree), put them into one SIF."""
