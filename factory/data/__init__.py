"""Files that come with the factory: built-in styles, and in a wheel the datasets and questions."""
