"""The ladder: what is tried, from cheap to dear, until a scheme's accuracy budget holds."""
