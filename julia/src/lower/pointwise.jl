# Scalar functions of the graph's pointwise operations, with PyTorch's results outside the domain: NaN, not an
# error, since a trial step may leave the domain and then be rejected.

nan(x) = oftype(x, NaN)

safe_log(x) = x < 0 ? nan(x) : log(x)
safe_log2(x) = x < 0 ? nan(x) : log2(x)
safe_log10(x) = x < 0 ? nan(x) : log10(x)
safe_sqrt(x) = x < 0 ? nan(x) : sqrt(x)
safe_rsqrt(x) = inv(safe_sqrt(x))
safe_sin(x) = isfinite(x) ? sin(x) : nan(x)
safe_cos(x) = isfinite(x) ? cos(x) : nan(x)
safe_tan(x) = isfinite(x) ? tan(x) : nan(x)
safe_asin(x) = abs(x) > 1 ? nan(x) : asin(x)
safe_acos(x) = abs(x) > 1 ? nan(x) : acos(x)
safe_acosh(x) = x < 1 ? nan(x) : acosh(x)
safe_erfinv(x) = abs(x) > 1 ? nan(x) : erfinv(x)
safe_loggamma(x) = first(logabsgamma(x))
polygamma_of(n, x) = polygamma(Int(n), x)
safe_atanh(x) = abs(x) > 1 ? nan(x) : atanh(x)
"`exp(-|x|) I_n(x)`, of Bessel's modified function; further out than AMOS goes it is its limit."
bessel_scaled(n, x) = isnan(x) ? x : abs(x) < 1e9 ? oftype(x, besselix(n, x)) : copysign(inv(sqrt(oftype(x, 2π) * abs(x))), isodd(n) ? x : one(x))
bessel_i0e(x) = bessel_scaled(0, x)
bessel_i1e(x) = bessel_scaled(1, x)
bessel_i0(x) = exp(abs(x)) * bessel_scaled(0, x)
bessel_i1(x) = exp(abs(x)) * bessel_scaled(1, x)
safe_ndtri(x) = 0 <= x <= 1 ? -sqrt(oftype(x, 2)) * erfcinv(2x) : nan(x)
lower_gamma(a, x) = a > 0 && x >= 0 ? first(incomplete_gamma(a, x)) : nan(x)
upper_gamma(a, x) = a > 0 && x >= 0 ? last(incomplete_gamma(a, x)) : nan(x)
incomplete_gamma(a, x) = isinf(x) ? (one(x), zero(x)) : oftype.(x, gamma_inc(a, x))
safe_pow(x, y) = (x < 0 && !isinteger(y)) ? nan(x) : x^y
square(x) = x * x
"The logarithm of a sum of exponentials; equal infinities have no difference."
logaddexp(x, y) = x == y ? x + log(oftype(x, 2)) : max(x, y) + vector_log1p(vector_exp(-abs(x - y)))
cube(x) = x * x * x
round_even(x) = round(x, RoundNearest)
relu(x) = max(x, zero(x))
remainder(x, y) = (r = rem(x, y); (!iszero(r) && (signbit(r) != signbit(y))) ? r + y : r)

"Scalar function of each pointwise operation."
const POINTWISE = Dict{Symbol,Any}(
    :neg => :-,
    :add => :+,
    :sub => :-,
    :mul => :*,
    :div => :/,
    :reciprocal => :inv,
    :abs => :abs,
    :exp => :vector_exp,
    :expm1 => :vector_expm1,
    :log => :safe_log,
    :log1p => :vector_log1p,
    :log2 => :safe_log2,
    :log10 => :safe_log10,
    :sqrt => :safe_sqrt,
    :rsqrt => :safe_rsqrt,
    :sin => :safe_sin,
    :cos => :safe_cos,
    :tan => :safe_tan,
    :asin => :safe_asin,
    :acos => :safe_acos,
    :atan => :atan,
    :sinh => :sinh,
    :cosh => :cosh,
    :tanh => :vector_tanh,
    :asinh => :asinh,
    :acosh => :safe_acosh,
    :atanh => :safe_atanh,
    :erf => :erf,
    :erfc => :erfc,
    :erfinv => :safe_erfinv,
    :lgamma => :safe_loggamma,
    :digamma => :digamma,
    :polygamma => :polygamma_of,
    :i0 => :bessel_i0,
    :special_i0e => :bessel_i0e,
    :special_i1 => :bessel_i1,
    :special_i1e => :bessel_i1e,
    :special_erfcx => :erfcx,
    :special_ndtri => :safe_ndtri,
    :igamma => :lower_gamma,
    :igammac => :upper_gamma,
    :sigmoid => :vector_sigmoid,
    :relu => :relu,
    :sign => :sign,
    :floor => :floor,
    :ceil => :ceil,
    :round => :round_even,
    :trunc => :trunc,
    :logical_not => :!,
    :isnan => :isnan,
    :isinf => :isinf,
    :pow => :safe_pow,
    :atan2 => :atan,
    :fmod => :rem,
    :remainder => :remainder,
    :maximum => :max,
    :minimum => :min,
    :lt => :<,
    :le => :<=,
    :gt => :>,
    :ge => :>=,
    :eq => :(==),
    :ne => :(!=),
    :logical_and => :&,
    :logical_or => :|,
    :logical_xor => :xor,
    :where => :ifelse,
)

"Pointwise operations that cost about as much as reading their operand: they may be computed twice."
const CHEAP = Set{Symbol}((
    :neg, :add, :sub, :mul, :abs, :relu, :maximum, :minimum, :lt, :le, :gt, :ge, :eq, :ne,
    :where, :logical_not, :logical_and, :logical_or, :cast, :expand, :full,
))

"A power with a literal exponent, by multiplication where that is exact."
function literal_pow(base, exponent::Real, T)
    exponent == 2 && return :(square.($base))
    exponent == 3 && return :(cube.($base))
    exponent == 0.5 && return :(safe_sqrt.($base))
    exponent == -1 && return :(inv.($base))
    exponent == -0.5 && return :(safe_rsqrt.($base))
    exponent == 0 && return T(1)
    if isinteger(exponent) && abs(exponent) <= 64
        return :($base .^ $(Int(exponent)))
    end
    return :(safe_pow.($base, $(T(exponent))))
end
