"""Forms, cards and the chart component that screens are made of."""
