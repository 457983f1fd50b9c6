# Compiles what a first solve and a first gradient need, when the package is installed rather than when it is used.

# dz/dt = tanh(z Wᵀ) + sin(t), z of shape (batch, 2).
const SAMPLE = """
{"version": $GRAPH_VERSION, "batch": null,
 "inputs": [{"kind": "t", "name": "0", "shape": []}, {"kind": "z", "name": "0", "shape": [[1, 0], 2]},
            {"kind": "parameter", "name": "W", "shape": [2, 2]}, {"kind": "cotangent", "name": "0", "shape": [[1, 0], 2]}],
 "nodes": [
  {"op": "input", "in": [], "shape": [], "dtype": "float", "attrs": {"index": 0}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 1}},
  {"op": "input", "in": [], "shape": [2, 2], "dtype": "float", "attrs": {"index": 2}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 3}},
  {"op": "permute", "in": [2], "shape": [2, 2], "dtype": "float", "attrs": {"dims": [1, 0]}},
  {"op": "mm", "in": [1, 4], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "tanh", "in": [5], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sin", "in": [0], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "add", "in": [6, 7], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [6, 6], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sub", "in": [{"number": 1}, 9], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [3, 10], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mm", "in": [11, 2], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "permute", "in": [11], "shape": [2, [1, 0]], "dtype": "float", "attrs": {"dims": [1, 0]}},
  {"op": "mm", "in": [13, 1], "shape": [2, 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [3], "shape": [], "dtype": "float", "attrs": {"dims": [0, 1], "keepdim": false}},
  {"op": "cos", "in": [0], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [15, 16], "shape": [], "dtype": "float", "attrs": {}}],
 "value": [8], "vjp": [17, 12, 14]}
"""

# An event function of that field: all numbers of z summed up, as the "rate" of one row for each sample.
const SAMPLE_EVENT = """
{"version": $GRAPH_VERSION, "batch": null,
 "inputs": [{"kind": "t", "name": "0", "shape": []}, {"kind": "z", "name": "0", "shape": [[1, 0], 2]},
            {"kind": "z", "name": "1", "shape": [[1, 0], 1]}, {"kind": "cotangent", "name": "0", "shape": [[1, 0], 2]},
            {"kind": "cotangent", "name": "1", "shape": [[1, 0], 1]}],
 "nodes": [
  {"op": "input", "in": [], "shape": [], "dtype": "float", "attrs": {"index": 0}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 1}},
  {"op": "input", "in": [], "shape": [[1, 0], 1], "dtype": "float", "attrs": {"index": 2}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 3}},
  {"op": "input", "in": [], "shape": [[1, 0], 1], "dtype": "float", "attrs": {"index": 4}},
  {"op": "full", "in": [{"number": 0.0}], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [1], "shape": [1, 1], "dtype": "float", "attrs": {"dims": [0, 1], "keepdim": true}},
  {"op": "expand", "in": [6], "shape": [[1, 0], 1], "dtype": "float", "attrs": {}}],
 "value": [5, 7], "vjp": [null, null, null]}
"""

# Fields as Python traces them: `python julia/src/workload/write.py` writes them. What most fields use is compiled with these.
const WORKLOAD = joinpath(@__DIR__, "workload")
const TYPICAL = ("mlp", "controlled", "flow", "ffjord", "species")
foreach(name -> include_dependency(joinpath(WORKLOAD, "$name.json")), TYPICAL)

"One solve of a field, and one gradient where there is a sensitivity, as Python would ask for them."
function sample_run(dtype::String, solver::String, sensitivity::Union{Symbol,Nothing}, name = "sample", json = SAMPLE, batch = 2)
    T = element_type(dtype)
    kernel, graph = register(name, dtype, json), Graph(json)
    sizes(kind) = [prod(dimsize.(x.shape, batch); init = 1) for x in graph.inputs if x.kind === kind]
    made(ns) = [fill(T(0.1), n) for n in ns]
    z, p, g = made(sizes(:z)), made([sizes(:arg); sizes(:parameter)]), made(3 .* sizes(:z))
    out, dz, dp, ts, dts, back = zero.(g), zero.(z), zero.(p), Time[0, 0.3, 1], zeros(Time, 3), zeros(8)
    address(x) = Int(pointer(x))
    listed(of, tensors...) = [length(of); [x isa Vector ? address(x) : x for xs in zip(length.(of), tensors...) for x in xs]]
    adaptive = !(solver in ("Euler", "Midpoint", "Heun", "RK4", "VelocityVerlet"))
    products = sensitivity === :discrete ? 0 : 1
    GC.@preserve z p g out dz dp ts dts back begin
        for keep in (1, sensitivity === :discrete ? 2 : 3)
            floats = Float64[1e-3, 1e-3, adaptive ? 0 : 0.3, 0, 0, 0, 0, 0]
            call = Int[HOST, kernel, solver_number(solver), batch, 3, keep, products, adaptive, 1000, 2^30, true, address(ts)]
            append!(call, listed(z, z, out), listed(p, p))
            kept = GC.@preserve call floats forward(address(call), length(call), address(floats))
            if kept != 0 && sensitivity !== nothing
                call = Int[HOST, sensitivity_number(sensitivity), -1, address(dts)]
                append!(call, listed(z, g, dz), listed(p, dp))
                GC.@preserve call pullback(kept, address(call), length(call), address(back))
            end
            kept == 0 || release(kept)
        end
    end
    return dz, dp, dts
end

"A solve of a large batch and its gradient, whose sums threads share."
function sample_team(dtype::String, solver::String)
    T, batch, ts = element_type(dtype), WORTH_SHARING, Time[0, 0.3, 1]
    field = TracedField(Workspace(KERNELS[register("sample", dtype, SAMPLE)], batch); threads = 2)
    u, θ = fill(T(0.1), 2batch), fill(T(0.1), 4)
    values = zeros(T, 2batch, 3)
    forward!(values, field, u, ts, θ, Options(; solver))
    _, kept = forward!(values, field, u, ts, θ, Options(; solver, keep = :stages))
    return discrete_pullback(kept, values)
end

"The search for an event of the sample field."
function sample_event(dtype::String, solver::String)
    T = element_type(dtype)
    kernel, event = register("sample", dtype, SAMPLE), register("sample event", dtype, SAMPLE_EVENT)
    z, W, ts, signs, directions = T[0.1, -0.2, 0.3, 0.4], T[0.1, 0.2, -0.3, 0.4], Time[0, 1], [-1.0], [1.0]
    address(x) = Int(pointer(x))
    floats = Float64[1e-3, 1e-3, 0, 0, 0, 0, 0, 0]
    GC.@preserve z W ts signs directions floats begin
        call = Int[HOST, kernel, event, 1, address(signs), address(directions), solver_number(solver), 2, 2, 0, 0, 1, 1000, 0, false]
        append!(call, [address(ts), 1, 4, address(z), 0, 1, 4, address(W), 0])
        GC.@preserve call find_event(address(call), length(call), address(floats))
        times, counts, signs, results = Time[0, 1, 0, 1], [2, 2], [-1.0, -1.0], zeros(6)
        GC.@preserve times counts signs results begin
            call = Int[kernel, event, 1, address(signs), address(directions), solver_number(solver), 2, 2, 1, 1000]
            append!(call, [address(times), address(counts), address(results), 1, 2, address(z), 1, 4, address(W), 0, 0])
            GC.@preserve call find_event_each(address(call), length(call), address(floats))
        end
    end
    return floats[2]
end

"Independent samples of the sample field, solved and differentiated."
function sample_each(dtype::String, solver::String)
    T = element_type(dtype)
    kernel = register("sample", dtype, SAMPLE)
    z, W, ts, counts = T[0.1, -0.2, 0.3, 0.4], T[0.1, 0.2, -0.3, 0.4], Time[0, 0.5, 1, 0, 0.3, 1], [3, 3]
    out, stats, g, dz, dW, dts, evaluations = zeros(T, 12), zeros(10), ones(T, 12), zeros(T, 4), zeros(T, 4), zeros(Time, 6), zeros(2)
    address(x) = Int(pointer(x))
    floats = Float64[1e-3, 1e-3, 0, 0, 0, 0, 0, 0]
    GC.@preserve z W ts counts out stats g dz dW dts evaluations floats for keep in (1, 2)
        call = Int[kernel, solver_number(solver), 2, 3, keep, 1, 1000, 2^20, true, address(ts), address(counts), address(stats)]
        append!(call, [1, 2, address(z), address(out), 1, 4, address(W), 0])
        kept = GC.@preserve call forward_each(address(call), length(call), address(floats))
        kept == 0 && continue
        call = Int[address(dts), 3, address(evaluations), 1, 2, address(g), address(dz), 1, 4, address(dW), 0]
        GC.@preserve call pullback_each(kept, address(call), length(call))
        release(kept)
    end
    return dz, dW
end

# The sum of squares of the states at three times, `(3, 2, 2)`, as the "rate" of one more number.
const SAMPLE_LOSS = """
{"version": $GRAPH_VERSION, "batch": null,
 "inputs": [{"kind": "t", "name": "0", "shape": []}, {"kind": "z", "name": "0", "shape": [3, 2, 2]},
            {"kind": "z", "name": "1", "shape": [1]}, {"kind": "cotangent", "name": "0", "shape": [3, 2, 2]},
            {"kind": "cotangent", "name": "1", "shape": [1]}],
 "nodes": [
  {"op": "input", "in": [], "shape": [], "dtype": "float", "attrs": {"index": 0}},
  {"op": "input", "in": [], "shape": [3, 2, 2], "dtype": "float", "attrs": {"index": 1}},
  {"op": "input", "in": [], "shape": [1], "dtype": "float", "attrs": {"index": 2}},
  {"op": "input", "in": [], "shape": [3, 2, 2], "dtype": "float", "attrs": {"index": 3}},
  {"op": "input", "in": [], "shape": [1], "dtype": "float", "attrs": {"index": 4}},
  {"op": "full", "in": [{"number": 0.0}], "shape": [3, 2, 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [1, 1], "shape": [3, 2, 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [6], "shape": [1, 1, 1], "dtype": "float", "attrs": {"dims": [0, 1, 2], "keepdim": true}},
  {"op": "reshape", "in": [7], "shape": [1], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [1, 4], "shape": [3, 2, 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [9, {"number": 2}], "shape": [3, 2, 2], "dtype": "float", "attrs": {}}],
 "value": [5, 8], "vjp": [null, 10, null]}
"""

"Training steps of the sample field."
function sample_training(dtype::String, solver::String)
    T = element_type(dtype)
    kernel, loss = register("sample", dtype, SAMPLE), register("sample loss", dtype, SAMPLE_LOSS)
    z, W, ts, losses, count = T[0.1, -0.2, 0.3, 0.4], T[0.1, 0.2, -0.3, 0.4], Time[0, 0.3, 1], zeros(T, 2), [0]
    m, v, rule = zeros(T, 4), zeros(T, 4), [0.1, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0]
    address(x) = Int(pointer(x))
    GC.@preserve z W ts losses count m v rule for adam in (1, 0)
        floats = Float64[1e-3, 1e-3, 0, 0, 0, 0, 0, 0]
        call = Int[kernel, solver_number(solver), 2, 3, 1, 1000, 2^30, address(ts), loss, 2, address(losses), 4, address(z)]
        append!(call, [1, 4, address(W), 0, 1, adam, 4, address(W), address(m), address(v), address(count), address(rule)])
        append!(call, [0, 1, 2, 0])
        GC.@preserve call floats train(address(call), length(call), address(floats))
    end
    return losses
end

"A solve that is interrupted, through the entry that Python calls."
function sample_interrupt()
    INTERRUPTED[] = true
    return guarded(ask)
end

# In the place of Python's functions.
pretended(_...) = Cint(0)
pretended_result(_...) = Ptr{Cvoid}(1)

"A field that Python would evaluate, which stays what it was: solved and differentiated, by its graphs and without them."
function sample_callback(dtype::String)
    T = element_type(dtype)
    PYTHON.ensure = @cfunction(pretended, Cint, ())
    PYTHON.release = PYTHON.decrease = @cfunction(pretended, Cint, (Ptr{Cvoid},))
    PYTHON.call = @cfunction(pretended_result, Ptr{Cvoid}, (Ptr{Cvoid},))
    call, time, memory, dt = zeros(Int, 2), zeros(Time, 1), zeros(T, 5, 4), zeros(T, 1)
    z, ts, out, dz, g, back = ones(T, 4), Time[0, 0.3, 1], zeros(T, 12), zeros(T, 4), ones(T, 12), zeros(8)
    address(x) = Int(pointer(x))
    GC.@preserve call time memory dt z ts out dz g back begin
        n = Int(typemax(PythonFunction))
        ints = [2, 100, n, ones(Int, n)..., address(call), address(time)]
        append!(ints, (address(memory) + sizeof(T) * 4i for i in 0:4), [address(dt), 4, 1, 2])
        kernel = GC.@preserve ints register_callback(dtype, address(ints), length(ints))
        for (keep, bytes) in ((1, 0), (2, 2^30), (2, 0))
            floats = Float64[1e-3, 1e-3, 0, 0, 0, 0, 0, 0]
            ints = Int[HOST, kernel, solver_number("Tsit5"), 2, 3, keep, 0, 1, 1000, bytes, false, address(ts), 1, 4, address(z), address(out), 0]
            kept = GC.@preserve ints floats forward(address(ints), length(ints), address(floats))
            kept == 0 && continue
            ints = Int[HOST, sensitivity_number("discrete"), -1, 0, 1, 4, address(g), address(dz), 0]
            GC.@preserve ints pullback(kept, address(ints), length(ints), address(back))
            release(kept)
        end
        forget_callback(kernel)
    end
    PYTHON.ensure = PYTHON.release = PYTHON.decrease = PYTHON.call = C_NULL
    return dz
end

"The addresses of the C functions, which are compiled for it, and what Python asks for as it starts Julia."
function sample_entries()
    addresses, answer = zeros(Int, 16), zeros(UInt8, 64)
    GC.@preserve addresses answer begin
        write_entry_points(Int(pointer(addresses)))
        for code in ("1 + 1", "true", "nothing", "VERSION", "\"a\"")
            GC.@preserve code evaluate_entry(Int(pointer(code)), sizeof(code), Int(pointer(answer)), length(answer))
        end
    end
    cannot_stop_threads()
    precompile(serve, (NTuple{7,Int}, Int, Int))
    precompile(set_threads, (Int, Bool))
    return evaluate_entry_point()
end

"Forget the sample's kernels: what is compiled stays."
function forget_samples()
    forget_fields!()
    foreach(empty!, (KERNELS, KERNEL_INDEX, KEPT))
    NEXT[] = ASKED[] = 0
    return
end

@compile_workload begin
    for dtype in ("float32", "float64"), solver in ("Tsit5", "DP5", "BS3", "DP8", "Vern7", "Euler", "Midpoint", "Heun", "RK4", "VelocityVerlet")
        sample_run(dtype, solver, :discrete)
    end
    for dtype in ("float32", "float64"), name in TYPICAL
        json = read(joinpath(WORKLOAD, "$name.json"), String)
        foreach(batch -> sample_run(dtype, "Tsit5", :discrete, name, json, batch), name == "species" ? (1, 2) : (2,))
    end
    for dtype in ("float32", "float64"), solver in ("Tsit5", "DP5")
        sample_team(dtype, solver)
    end
    for dtype in ("float32", "float64")
        sample_event(dtype, "Tsit5")
        sample_each(dtype, "Tsit5")
        sample_training(dtype, "Tsit5")
        sample_interrupt()
        sample_callback(dtype)
    end
    sample_entries()
    forget_samples()
end
