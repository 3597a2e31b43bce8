def forecast(rows, config):
    return {"outcome":"converged","reason":"todo"}
