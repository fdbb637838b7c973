"""What techniques that answer the same question are measured in: one module for each family."""
