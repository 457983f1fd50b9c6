using PyNODE: HOST

include("like.jl")

address(x) = Int(pointer(x))

"A solve of the sample field as Python asks for it: values, gradients, values in between, how it went."
function through_the_bridge(T, device, solver, sensitivity)
    kernel = PyNODE.register("sample", lowercase(string(T)), PyNODE.SAMPLE)
    z, W, ts, at = T[0.1, -0.2, 0.3, 0.4], T[0.1, 0.2, -0.3, 0.4], T[0, 0.3, 1], T[0.2, 0.7]
    out, dz, dW, dts, g, between = zeros(T, 12), zeros(T, 4), zeros(T, 4), zeros(T, 3), T.(sin.(1:12)), zeros(T, 8)
    adaptive = !(solver in ("Euler", "RK4"))
    floats, back = Float64[1e-6, 1e-8, adaptive ? 0 : 0.05, 0, 0, 0, 0, 0], zeros(8)
    discrete = sensitivity === :discrete
    GC.@preserve z W ts at out dz dW dts g between floats back begin
        call = Int[device, kernel, PyNODE.solver_number(solver), 2, 3, discrete ? 2 : 3, !discrete, adaptive, 1000, 2^30, address(ts)]
        append!(call, [1, 4, address(z), address(out), 1, 4, address(W)])
        kept = GC.@preserve call PyNODE.forward(address(call), length(call), address(floats))
        call = Int[device, PyNODE.sensitivity_number(sensitivity), -1, address(dts), 1, 4, address(g), address(dz), 1, 4, address(dW)]
        GC.@preserve call PyNODE.pullback(kept, address(call), length(call), address(back))
        call = Int[device, 2, address(at), 1, 4, address(between)]
        GC.@preserve call PyNODE.interpolate(kept, address(call), length(call))
        PyNODE.release(kept)
    end
    return out, dz, dW, dts, between, floats[4:8], back
end

const WAYS = [
    [(T, solver, :discrete) for T in (Float32, Float64) for solver in ("Tsit5", "RK4", "DP8")]
    [(Float64, "Tsit5", sensitivity) for sensitivity in (:interpolating, :quadrature, :gauss, :backsolve)]
]

@testset "the bridge on a device, $T, $solver, $sensitivity" for (T, solver, sensitivity) in WAYS
    here, there = (through_the_bridge(T, device, solver, sensitivity) for device in (HOST, LIKE))
    @test all(isapprox(a, b; rtol = 1000eps(T)) for (a, b) in zip(here, there))
    @test all(x -> any(!iszero, x), there)
end

"The least bytes that the calls of a solve allocate, of several: without a gradient, for one, for its pullback; and its steps."
function allocations(T, solver, rtol)
    kernel = PyNODE.register("sample", lowercase(string(T)), PyNODE.SAMPLE)
    z, W, ts = T[0.1, -0.2, 0.3, 0.4], T[0.1, 0.2, -0.3, 0.4], T[0, 3, 10]
    out, dz, dW, dts, g = zeros(T, 12), zeros(T, 4), zeros(T, 4), zeros(T, 3), T.(sin.(1:12))
    floats, back, kept = zeros(8), zeros(8), 0
    call = Int[HOST, kernel, PyNODE.solver_number(solver), 2, 3, 1, 0, 1, 10_000, 2^30, address(ts)]
    append!(call, [1, 4, address(z), address(out), 1, 4, address(W)])
    pull = Int[HOST, PyNODE.sensitivity_number(:discrete), -1, address(dts), 1, 4, address(g), address(dz), 1, 4, address(dW)]
    found = GC.@preserve z W ts out dz dW dts g floats back call pull map(1:6) do _
        floats[1:3] .= (rtol, rtol, 0)
        call[6] = 1
        plain = @allocated PyNODE.forward(address(call), length(call), address(floats))
        floats[1:3] .= (rtol, rtol, 0)
        call[6] = 2
        taped = @allocated kept = PyNODE.forward(address(call), length(call), address(floats))
        pulled = @allocated PyNODE.pullback(kept, address(pull), length(pull), address(back))
        PyNODE.release(kept)
        [plain, taped, pulled, Int(floats[2])]
    end
    return reduce((a, b) -> min.(a, b), found)
end

@testset "what a solve allocates, $T, $solver" for T in (Float32, Float64), solver in ("Tsit5", "Vern7")
    few, many = allocations(T, solver, 1e-2), allocations(T, solver, 1e-6)
    println("$T, $solver: $(few[1:3]) bytes in $(few[4]) steps, $(many[1:3]) in $(many[4])")
    @test many[4] >= 2few[4]
    @test all(<=(16_000), [few[1], many[1], few[3], many[3]])  # whatever the steps
    @test many[2] <= 16_000 + 1000many[4]
end
