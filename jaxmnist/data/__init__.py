"""From bytes on disk, arrays or names to a dataset; pictures for prediction."""
