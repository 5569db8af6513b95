"""The commands of ``svf``, grouped by what they are about. Each imports what it needs when it runs."""
