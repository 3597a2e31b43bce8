"""stub"""
FEATURES = ("activation","signal","correlation","first_grad","last_grad","largest_grad","smallest_grad","first_error","largest_activation","least_signal","smallest_grad_body")
def features(rows):
    last, first = rows[-1], rows[0]
    g=[r["grad_rms"] for r in rows]
    return dict(activation=last["activation_rms"],signal=last["signal_std"],correlation=last["correlation"],first_grad=g[0],last_grad=g[-1],largest_grad=max(g),smallest_grad=min(g),first_error=first["activation_grad_rms"],largest_activation=max(r["activation_rms"] for r in rows),least_signal=min(r["signal_std"]/r["activation_rms"] if r["activation_rms"] else 0 for r in rows),smallest_grad_body=min(g[:-1]))
def forecast(rows, config):
    return {"outcome":"converged","reason":"todo"}
