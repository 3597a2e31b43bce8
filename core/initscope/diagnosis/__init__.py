"""From recorded rows to answers: outcomes compared, and how sure a few seeds make us."""
