"""What users see of a search: console, TensorBoard, page and notebook."""
