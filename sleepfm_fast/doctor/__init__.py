"""What is wrong with a night or a cohort, before anything is made of it; ``preprocess --inspect`` calls it."""
