"""TradingBot: stocks, orders and an account. Prices stand still and the clock shows one time, so that a task has one answer."""

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Api, ApiError, require

NAMES = {
    "Apple": "AAPL", "Google": "GOOG", "Tesla": "TSLA", "Microsoft": "MSFT", "Nvidia": "NVDA", "Zeta Corp": "ZETA",
    "Alpha Tech": "ALPH", "Omega Industries": "OMEG", "Quasar Ltd.": "QUAS", "Neptune Systems": "NEPT",
    "Synex Solutions": "SYNX", "Amazon": "AMZN",
}  # fmt: skip
SECTORS = {"Technology": ("AAPL", "GOOG", "MSFT", "NVDA"), "Automobile": ("TSLA",)}
NOW = "10:30 AM"


# An account whose task says nothing of orders: the questions of those tasks speak of this pending one.
PENDING = {"id": 12446, "order_type": "Sell", "symbol": "GOOG", "price": 2840.34, "amount": 5, "status": "Pending"}


class TradingBot(Api):
    """An account. Placing an order reserves nothing, as in the benchmark's tasks, which read the balance after it."""

    INITIAL: ClassVar[Mapping[str, Any]] = {
        "orders": {12446: PENDING},
        "account_info": {"account_id": 12345, "balance": 10000.0, "binding_card": 1974202140965533},
        "authenticated": False,
        "market_status": "Open",
        "order_counter": 12446,
        "stocks": {},
        "watch_list": [],
        "transaction_history": [],
    }
    orders: dict[int, dict[str, Any]]
    account_info: dict[str, Any]
    authenticated: bool
    market_status: str
    order_counter: int
    stocks: dict[str, dict[str, Any]]
    watch_list: list[str]
    transaction_history: list[dict[str, Any]]

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.orders = {int(number): order for number, order in self.orders.items() if str(number).isdigit()}
        while self.order_counter in self.orders:
            self.order_counter += 1

    def trading_login(self, username: str, password: str) -> dict[str, Any]:
        if self.authenticated:
            return {"status": "already logged in"}
        self.authenticated = True
        return {"status": "logged in"}

    def trading_logout(self) -> dict[str, Any]:
        if not self.authenticated:
            return {"status": "no user is logged in"}
        self.authenticated = False
        return {"status": "logged out"}

    def trading_get_login_status(self) -> dict[str, Any]:
        return {"status": self.authenticated}

    def get_current_time(self) -> dict[str, Any]:
        return {"current_time": NOW}

    def get_account_info(self) -> dict[str, Any]:
        self._logged_in()
        return dict(self.account_info)

    def fund_account(self, amount: float) -> dict[str, Any]:
        self._logged_in()
        require(amount > 0, "the amount must be positive")
        return self._move("deposit", amount, "account funded")

    def withdraw_funds(self, amount: float) -> dict[str, Any]:
        self._logged_in()
        require(0 < amount <= self.account_info["balance"], "the amount must be positive and at most the balance")
        return self._move("withdrawal", -amount, "funds withdrawn")

    def get_symbol_by_name(self, name: str) -> dict[str, Any]:
        return {"symbol": NAMES.get(name, "Stock not found")}

    def get_available_stocks(self, sector: str) -> dict[str, Any]:
        return {"stock_list": list(SECTORS.get(sector, ()))}

    def get_stock_info(self, symbol: str) -> dict[str, Any]:
        return dict(self._stock(symbol))

    def filter_stocks_by_price(self, stocks: list[str], min_price: float, max_price: float) -> dict[str, Any]:
        known = [stock for stock in stocks if stock in self.stocks]
        return {"filtered_stocks": [stock for stock in known if min_price <= self.stocks[stock]["price"] <= max_price]}

    def notify_price_change(self, stocks: list[str], threshold: float) -> dict[str, Any]:
        known = [stock for stock in stocks if stock in self.stocks]
        moved = [stock for stock in known if abs(self.stocks[stock]["percent_change"]) > threshold]
        text = f"prices of {', '.join(moved)} changed significantly" if moved else "no significant price changes"
        return {"notification": text}

    def get_watchlist(self) -> dict[str, Any]:
        return {"watchlist": list(self.watch_list)}

    def add_to_watchlist(self, stock: str) -> dict[str, Any]:
        self._stock(stock)
        if stock not in self.watch_list:
            self.watch_list.append(stock)
        return {"watchlist": list(self.watch_list)}

    def remove_stock_from_watchlist(self, symbol: str) -> dict[str, Any]:
        require(symbol in self.watch_list, f"{symbol} is not on the watchlist")
        self.watch_list.remove(symbol)
        return {"status": f"{symbol} removed from the watchlist"}

    def place_order(self, order_type: str, symbol: str, price: float, amount: int) -> dict[str, Any]:
        self._logged_in()
        self._stock(symbol)
        require(order_type in ("Buy", "Sell"), "an order is a Buy or a Sell")
        require(price > 0 and amount > 0, "price and amount must be positive")
        order_id = self.order_counter
        order = {"id": order_id, "order_type": order_type, "symbol": symbol, "price": price, "amount": amount, "status": "Open"}
        self.orders[order_id] = order
        self.order_counter += 1
        return {"order_id": order_id, "order_type": order_type, "status": "Pending", "price": price, "amount": amount}

    def get_order_details(self, order_id: int) -> dict[str, Any]:
        self._logged_in()
        return dict(self._order(order_id))

    def get_order_history(self) -> dict[str, Any]:
        self._logged_in()
        return {"order_history": list(self.orders)}

    def cancel_order(self, order_id: int) -> dict[str, Any]:
        self._logged_in()
        order = self._order(order_id)
        require(order["status"] != "Completed", f"order {order_id} is completed")
        order["status"] = "Cancelled"
        return {"order_id": order_id, "status": "Cancelled"}

    def get_transaction_history(self, start_date: str | None = None, end_date: str | None = None) -> dict[str, Any]:
        self._logged_in()
        first = "" if start_date in (None, "None") else str(start_date)
        last = "9999" if end_date in (None, "None") else str(end_date)
        within = [one for one in self.transaction_history if first <= str(one.get("timestamp", ""))[:10] <= last]
        return {"transaction_history": within}

    def _move(self, kind: str, amount: float, status: str) -> dict[str, Any]:
        self.account_info["balance"] += amount
        self.transaction_history.append({"type": kind, "amount": abs(amount), "timestamp": "2024-10-27 10:30:00"})
        return {"status": status, "new_balance": self.account_info["balance"]}

    def _stock(self, symbol: str) -> dict[str, Any]:
        if symbol not in self.stocks:
            raise ApiError(f"there is no stock {symbol}")
        return self.stocks[symbol]

    def _order(self, order_id: int) -> dict[str, Any]:
        if order_id not in self.orders:
            raise ApiError(f"there is no order {order_id}")
        return self.orders[order_id]

    def _logged_in(self) -> None:
        require(self.authenticated, "no user is logged in to the trading system")
