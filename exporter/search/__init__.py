"""Search: many variants of one recipe, judged by what their files measure, and the best trade-offs among them."""
