using PyNODE: HOST

include("like.jl")

address(x) = Int(pointer(x))

"""
The numbers of a solve of the sample field, whose memory the calls point to, and the calls as Python makes them: `forward`
with what a gradient needs kept, `pullback`, `interpolate`.
"""
function calls_of_sample(T, device, solver, sensitivity, ts, field = ("sample", PyNODE.SAMPLE))
    x = (;
        z = T[0.1, -0.2, 0.3, 0.4], W = T[0.1, 0.2, -0.3, 0.4], ts = Float64.(ts), at = [0.2, 0.7], g = T.(sin.(1:12)),
        out = zeros(T, 12), dz = zeros(T, 4), dW = zeros(T, 4), dts = zeros(3), between = zeros(T, 8),
        floats = zeros(8), back = zeros(8),
    )
    kernel, discrete = PyNODE.register(field[1], lowercase(string(T)), field[2]), sensitivity === :discrete
    forward = Int[device, kernel, PyNODE.solver_number(solver), 2, 3, discrete ? 2 : 3, !discrete, solver != "RK4"]
    append!(forward, [10_000, 2^30, true, address(x.ts), 1, 4, address(x.z), address(x.out), 1, 4, address(x.W)])
    pullback = Int[device, PyNODE.sensitivity_number(sensitivity), -1, address(x.dts), 1, 4, address(x.g)]
    append!(pullback, [address(x.dz), 1, 4, address(x.dW)])
    return x, forward, pullback, Int[device, 2, address(x.at), 1, 4, address(x.between)]
end

"Values, gradients, values in between, and how it went."
function through_the_bridge(T, device, solver, sensitivity)
    x, call, pull, between = calls_of_sample(T, device, solver, sensitivity, [0, 0.3, 1])
    rtol = T === Float32 ? 1e-4 : 1e-6  # far above rounding, or the number of steps would be decided by it
    x.floats[1:3] .= (rtol, rtol / 100, solver == "RK4" ? 0.05 : 0)
    GC.@preserve x call pull between begin
        kept = PyNODE.forward(address(call), length(call), address(x.floats))
        PyNODE.pullback(kept, address(pull), length(pull), address(x.back))
        PyNODE.interpolate(kept, address(between), length(between))
        PyNODE.release(kept)
    end
    return x.out, x.dz, x.dW, x.dts, x.between, x.floats[4:8], x.back
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

# A field that is compiled here, as a user's is: calls of the sample's own code, which lies in the package's image, may go
# through a wrapper that was made before the code was compiled, and allocate.
const OWN = ("allocations", replace(PyNODE.SAMPLE, "\"tanh\"" => "\"sin\""))

"The least bytes that the calls of a solve allocate, of several: without a gradient, for one, for its pullback; and its steps."
function allocations(T, solver, rtol)
    x, call, pull, _ = calls_of_sample(T, HOST, solver, :discrete, [0, 3, 10], OWN)
    kept = 0
    found = GC.@preserve x call pull map(1:6) do _
        x.floats[1:3] .= (rtol, rtol, 0)
        call[6] = 1
        plain = @allocated PyNODE.forward(address(call), length(call), address(x.floats))
        x.floats[1:3] .= (rtol, rtol, 0)
        call[6] = 2
        taped = @allocated kept = PyNODE.forward(address(call), length(call), address(x.floats))
        pulled = @allocated PyNODE.pullback(kept, address(pull), length(pull), address(x.back))
        PyNODE.release(kept)
        [plain, taped, pulled, Int(x.floats[2])]
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
