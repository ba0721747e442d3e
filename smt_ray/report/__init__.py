"""Everything drawn or tabulated; it is given plain values."""
