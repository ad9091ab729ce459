"""How software speaks to a whole core: one interface, several back ends."""
