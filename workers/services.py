"""The services this deployment talks to. All of them are simulated, on a database of their own."""

from datetime import timedelta

from workers.config import settings
from workers.shop.carrier import Carrier
from workers.shop.database import ShopDatabase
from workers.shop.desk import OrderDesk
from workers.shop.inventory import Inventory
from workers.shop.invoicing import Invoicing
from workers.shop.payments import PaymentProvider

shop = ShopDatabase(settings().shop_database_url, latency=timedelta(milliseconds=settings().shop_latency_ms))

inventory = Inventory(shop)
psp = PaymentProvider(shop)
carrier = Carrier(shop)
invoicing = Invoicing(shop)
desk = OrderDesk(shop)
